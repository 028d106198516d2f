"""Calls Linux, as the only package: flat functions over numbers, structs and bytes."""
