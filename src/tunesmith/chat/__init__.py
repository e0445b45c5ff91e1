"""From messages to tokens and back: the tokenizer, the chat templates (data), the one renderer, and a view of its work."""
