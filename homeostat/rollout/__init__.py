"""Episodes: the policy and the bots take turns."""
