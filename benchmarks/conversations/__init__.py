"""Conversations of many turns against a recipe's server. `__main__` is the command.

`client` plays one turn, `play` all conversations turn by turn, `turns` makes a row of the report of
a turn's replies, and `figure` draws a report. The server and its arms are those of
`benchmarks/serving`.
"""
