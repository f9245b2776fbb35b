"""Replies of models taken apart: which text is thinking, which is a call of a tool, and which is content."""
