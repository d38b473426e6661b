"""What every stage uses: files, tables, devices, errors."""
