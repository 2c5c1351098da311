"""Files that an exported model carries with it. They need torch and transformers, and nothing of this project."""
