"""Train students from target stores."""
