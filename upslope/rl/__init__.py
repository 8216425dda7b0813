"""Reinforcement learning: environments speak messages, the rollout loop owns tokens, rewards score groups, one objective."""
