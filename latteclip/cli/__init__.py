"""The command line: commands of rules and of people."""
