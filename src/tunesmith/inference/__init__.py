"""Engines that answer prompts: llama.cpp in process (CPU), vLLM as a child process (GPU), transformers (exact weights).

Owns how token ids become text, streamed or in a batch. Refuses to know chat templates, HTTP clients of ours, or recipes.
"""
