"""Take a student away: one folder that embeds images, texts and sounds without Precept and without torch.

`bundle.py` writes it, contract/bundle.py reads it; `portable.py` and its three modalities say how a frozen encoder
becomes a module that ONNX can hold, `graph.py` makes the models, `card.py` the card.
"""
