"""Pages that show runs. Reads run folders, and changes nothing in them."""
