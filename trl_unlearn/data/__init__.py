"""From the rows people have to the batches a trainer needs: formats, tokens, forget–retain pairs, padding."""
