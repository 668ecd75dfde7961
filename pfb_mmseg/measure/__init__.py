"""Measurements that are made of many calls of the tools: what is called, and what came of it."""
