"""`pipeline`: run the frozen encoders once over a dataset and keep what they say."""
