"""What is learned: the text prompt, the visual prompt and the class-aware visual prompt."""
