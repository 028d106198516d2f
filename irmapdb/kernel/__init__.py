"""Calls Linux. No other package does this: flat functions over numbers, structs and bytes."""
