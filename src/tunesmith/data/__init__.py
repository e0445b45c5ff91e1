"""The craft of rows: reading them from any known format, telling them apart, filtering and splitting them."""
