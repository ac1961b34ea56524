"""Who acts in an episode: a policy of token ids, or one behind a chat endpoint."""
