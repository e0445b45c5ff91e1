"""Saved ShareGPT pages: the data inside the page, and the HTML of its answers as Markdown."""
