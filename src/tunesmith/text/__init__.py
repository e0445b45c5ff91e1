"""Text on disk and text compared with text: JSONL records, ROUGE-L."""
