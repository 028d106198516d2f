"""The only package that calls Linux: flat functions over numbers, structs and bytes."""
