"""What a method optimises."""
