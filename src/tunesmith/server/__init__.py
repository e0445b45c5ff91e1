"""The OpenAI-compatible gateway and its chat page: protocol, limits, keys and errors around any ServingEngine.

Owns everything a client can see. Refuses to know how tokens are computed: that is the engine's.
"""
