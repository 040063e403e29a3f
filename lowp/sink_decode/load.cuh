// Phase 1, load: each warp streams its own steps through its own ring in shared memory; no CTA barrier.
//
// A stage of the ring:  | keys: the blocks of tile 0, of tile 1 ... | values: the same | token scales: k, v of each tile |
// Token scales of a tile: a row of 16 bytes for tokens r and r + 8: k, v, k, v.
//
// A block in it, each cell 16 bytes, c the chunk of the row:
//
//   8 bits, 64 dims:    row r of 4 chunks   cell c ^ (r / 2) % 4                so that readers of 4 or 8 rows
//   8 bits, 128 dims:   row r of 8 chunks   cell c ^ (r / 2) % 4 ^ 4 (r % 2)    at one column hit different banks
//   16 bits, a half:    row r of 8 chunks   cell c ^ r % 8
//
// Interleaved, the blocks are of keys and values, laid out as 128 dims of which the values are the second half.
//
// A line of 128 bytes of device memory goes to 128 bytes in a row of the ring: two destinations would be two requests.
#pragma once
#include "split.cuh"

DEVICE int swizzle(int row) { return kOneByte ? row / 2 % 4 ^ (kRowBytes / 64 - 1) * 4 * (row % 2) : row % 8; }
DEVICE unsigned half_at(unsigned block, int half) { return kOneByte ? block ^ (64 * half) : block + half * kBlockBytes; }

struct Stream {
  const Params* p;
  const int* table;         // this row's entries
  const char* k;            // this KV head's caches, at this lane's chunk of a block
  const char* v;
  const char* k_scale;      // token scales at this lane's slot of a tile: k's in lanes 0-15, v's in lanes 16-31; where
                            //   k has channel scales, v's in both
  unsigned ring;            // this lane's first chunk of keys in the ring
  unsigned scale_ring;
  int worker;               // this warp among the kWorkers that the tiles are dealt to
  int first_tile, end_tile;
  unsigned raw, next_raw;   // table entries of this batch of steps and the next, one a lane
  unsigned offset, scale_offset;  // of this lane's tile: in the cache in units of 16 bytes, in the scales in floats

  static constexpr int kCopyRows = kRowBytes == 64 ? 8 : 4;  // rows of 4 or 8 chunks
  static constexpr int kBatch = 32 / kTiles;  // steps whose entries one register of the warp holds

  // The tile whose entry this lane holds in a batch.
  DEVICE int tile(int batch) const {
    const int lane = threadIdx.x & 31;
    return first_tile + ((batch * kBatch + lane / kTiles) * kWorkers + worker) * kTiles + lane % kTiles;
  }
  DEVICE unsigned entry(int batch) const {
    const int page = tile(batch) >> p->page_shift;
    return page < p->table_width ? load_int(table + page) : 0;
  }

  // Ask for the first entries, before the length is known.
  DEVICE void prefetch_entries() { raw = entry(0); next_raw = entry(1); }

  // Entries to offsets. A tile past the end is read from page 0 and masked: its own entry must not be followed.
  DEVICE void locate(int batch) {
    const int t = tile(batch);
    const unsigned page = t < end_tile ? raw : 0u, slot = t < end_tile ? (t & ((1 << p->page_shift) - 1)) * 16 : 0;
    offset = page * p->page_stride + slot * p->slot_stride;
    if constexpr (kTokenScales) scale_offset = page * p->scale_page + slot * p->scale_slot;
  }

  // Start the copies of step i into a stage.
  DEVICE void issue(int i, int stage) {
    if (i % kBatch == 0) {
      const int batch = i / kBatch;
      if (batch > 0) { raw = next_raw; next_raw = entry(batch + 1); }
      locate(batch);
    }
    const unsigned stage_offset = stage * kStageBytes;
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      const int owner = (i % kBatch) * kTiles + j;
      const unsigned long long bytes = 16ull * __shfl_sync(kAllLanes, offset, owner);
      copy_tile(ring + stage_offset + j * kTileBytes, k + bytes);
      if constexpr (!kInterleaved) copy_tile(ring + stage_offset + j * kTileBytes + kValuesOffset, v + bytes);
      if constexpr (kTokenScales)
        copy_4(scale_ring + stage_offset + j * 128, k_scale + 4ull * __shfl_sync(kAllLanes, scale_offset, owner));
    }
  }

  // The warp copies a tile of keys or values (interleaved, of both), kCopyRows rows at a time. With 4 rows at a time,
  // one bit of the swizzle flips on odd i.
  DEVICE void copy_tile(unsigned into, const char* from) const {
    constexpr unsigned kTurn = kCopyRows == 8 ? 0 : kOneByte ? 32 : 64;
    const unsigned rows = 16u * kCopyRows * p->slot_stride;
#pragma unroll
    for (int half = 0; half < (kOneByte ? 1 : kHalves); half++)
#pragma unroll
      for (int i = 0; i < 16 / kCopyRows; i++)
        copy_16((into ^ (i % 2 * kTurn)) + half * kBlockBytes + i * kCopyRows * kRowBytes, from + i * rows + half * kRowBytes);
  }
};

DEVICE Stream make_stream(const Params& p, const Split& s, unsigned ring, int warp, int lane, int head) {
  const int row = lane * Stream::kCopyRows / 32, chunk = lane % (32 / Stream::kCopyRows);
  const unsigned long long from = 16ull * (static_cast<unsigned long long>(head) * p.head_stride + row * p.slot_stride + chunk);
  Stream stream{&p, p.table + static_cast<long long>(s.row) * p.table_stride, opaque(p.k + from), opaque(p.v + from)};
  stream.ring = opaque(ring + row * kRowBytes + (chunk ^ swizzle(row)) * 16);
  if constexpr (kTokenScales) {
    const float* scales = lane < 16 && !kChannelScales ? p.k_scale : p.v_scale;
    stream.k_scale = opaque(reinterpret_cast<const char*>(scales + head * p.scale_head + (lane % 16) * p.scale_slot));
    stream.scale_ring = opaque(ring + kScalesOffset + (lane % 8) * 16 + (lane / 8 % 2) * 8 + (lane / 16) * 4);
  }
  stream.worker = kCluster ? s.index * kWarps + warp : warp;
  stream.first_tile = s.first_tile;
  return stream;
}
