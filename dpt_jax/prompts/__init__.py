"""What is learned: the text prompt, the visual prompt and the class-aware visual prompt."""

from typing import Any

# The learned parameters by part: {"text": …, "visual" or "coupling": …, "meta_net": …,
# "cavpt": …}, those of the parts in use.
Prompts = dict[str, Any]
