"""Everything that a drafted token meets outside the model and the N-gram cache.

`draft_reader` loads the MTP layer, `draft_head` has the head that drafts are chosen with,
`draft_vocabulary` chooses the tokens worth drafting, `window_limits` says which windows can be
verified, and `window_sampling` makes a window sample as single steps would. The draft
model is `models/longcat_flash_nextn.py`.
"""
