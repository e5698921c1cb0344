"""Model classes that SGLang's registry imports from here: one module, one EntryClass."""
