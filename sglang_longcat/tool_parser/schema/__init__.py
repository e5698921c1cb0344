"""A tool's JSON schema, rewritten so that xgrammar's compiler obeys it.

xgrammar reads a schema's keywords one by one: it takes `oneOf` for `anyOf`, reads only one of
`$ref`, `anyOf`, `allOf` and what stands beside them, and ignores what it does not know. `document`
looks schemas up, `alternatives` works out unions and intersections into `facts`, `exclusive` keeps
the branches of `oneOf` apart, `writer` writes the result with `containers`, `scalars`, `patterns`
and `characters`. The result may accept less than the schema, never more. What has no such result is
refused (`refusal`). Owns: nothing else; `structure` makes calls of it. Works without SGLang.
"""
