"""Files other programs load: merged safetensors, GGUF, a model card; and the checks that they say what the trained model
says. Knows nothing of training, and of engines only the protocol."""
