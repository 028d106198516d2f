"""The only room that touches Linux: flat functions over numbers, structs and bytes."""
