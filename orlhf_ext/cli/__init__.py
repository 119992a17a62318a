"""What every command line shares: errors, flag types, code and patterns that a user gives."""
