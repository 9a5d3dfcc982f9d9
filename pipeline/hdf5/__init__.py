"""HDF5 files: a finished store as one, and a store of one, whoever wrote it.

    FILE.h5                      attributes: precept_format, dataset, protocol, media_root, num_classes
      image/  text/  audio/      row i of every dataset is item i
        id split file part text language    UTF-8 strings [N]
        label start_ms length_ms int32 [N]; -1 for no label, and for a length that reaches to the end
        size_bytes               int64 [N], -1 where it is not known
        <fieldset>/              attributes: provenance (JSON), num_views, batch_size
          <field>                decoded values [N, ...], with K augmented views [N, K + 1, ...], view 0 first:
                                 float16 where the store holds float16, int32 for whole numbers, else float32;
                                 attributes: about, encoding (JSON)
          quarantined            bool [N]: inputs that could not be decoded
      pairs/<a>-<b>              int64 [p, 2]: row of a, row of b; attribute: modalities

Arrays are contiguous, so that a row is one read; strings have variable length. What a file of somebody else's must
say with `--map` are the paths of this layout.
"""
