"""`eval`: exact retrieval figures of a trained student, and an index of its embeddings."""
