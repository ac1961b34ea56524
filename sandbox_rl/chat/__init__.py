"""From messages to token ids and from sampled ids to tool calls.

The prompt is rendered once by the model's own chat template; afterwards the sequence only grows, by
the ids that the policy sampled and by observations in the template's own frame. See `chat.format`.
"""
