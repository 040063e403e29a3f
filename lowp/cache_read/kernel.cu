// Tokens of a paged cache into contiguous rows of BF16 or FP16, K and V.
//
// A thread moves 16 values of one head, of kRows output rows. Two threads, neighbours in a warp, share 32 values; each
// stores the first or second half of either 16, so that every store of a warp fills whole sectors of 32 bytes.
#include "convert.cuh"

constexpr unsigned kHeadThreads = kHeadDim / 16, kTokenThreads = 2 * kKvHeads * kHeadThreads;
constexpr int kApart = 16;  // values from a thread's first chunk of 8 to its second, once exchanged
constexpr unsigned kAllLanes = 0xffffffffu, kNan = 0x7fff7fffu;

struct Params {
  const char* k_cache;
  const char* v_cache;
  char* k_out;                       // [rows, kv_heads, head_dim], heads contiguous, rows strided
  char* v_out;
  const float* k_scale;              // null (1), or by the strides below; [kv_heads, head_dim] with channel scales
  const float* v_scale;
  const int* table;                  // [sequences, pages]
  const int* starts;                 // [sequences], or null: 0
  const int* ends;                   // [sequences]
  const int* cu_out;                 // [sequences + 1]
  long long page_stride, head_stride, slot_stride;        // of the caches, bytes
  long long k_out_stride, v_out_stride;                   // bytes from row to row
  long long table_stride;                                 // entries from sequence to sequence
  long long k_scale_page, k_scale_head, k_scale_slot;     // floats
  long long v_scale_page, v_scale_head, v_scale_slot;
  int sequences, rows;                                    // rows of the outputs
  int table_tokens, page_shift;                           // tokens of a sequence's table; log2 of a page's slots
  long long pages;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "params.py's Params");

// One sequence of the call: its tokens and its rows of the outputs.
struct Sequence {
  int number, first_row, next_row;
  unsigned start, end;

  DEVICE Sequence(const Params& p, int number)
      : number(number), first_row(p.cu_out[number]), next_row(p.cu_out[number + 1]),
        start(p.starts ? p.starts[number] : 0), end(min(max(p.ends[number], 0), p.table_tokens)) {}

  // The token that belongs to a row, or -1: the row stays as it is.
  DEVICE int token(int row) const {
    const unsigned token = start + row - first_row;
    return row >= first_row && row < next_row && token >= start && token < end ? int(token) : -1;
  }
};

// The last sequence whose rows begin at `row` or before it; the first one if there is none.
DEVICE int sequence_at(const Params& p, int row) {
  int low = 0, high = p.sequences;
  while (high - low > 1) {
    const int middle = low + high >> 1;
    (p.cu_out[middle] <= row ? low : high) = middle;
  }
  return low;
}

// Of a thread's 16 bytes and its neighbour's, two chunks of 8: the even thread's from the starts, the odd one's from the
// second halves.
DEVICE uint4 exchanged(uint4 raw, bool odd) {
  const unsigned x = __shfl_xor_sync(kAllLanes, odd ? raw.x : raw.z, 1);
  const unsigned y = __shfl_xor_sync(kAllLanes, odd ? raw.y : raw.w, 1);
  return odd ? uint4{x, y, raw.z, raw.w} : uint4{raw.x, raw.y, x, y};
}

DEVICE uint4 out_of(Values v, float scale, const float* channels) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if constexpr (kChannelScales) v.x[i] = __fmul_rn(v.x[i], channels[i]);
    v.x[i] = __fmul_rn(v.x[i], scale);
  }
  return pack<kOutBf16>(v);
}

DEVICE uint4 out_of(uint4 raw) {
  if constexpr (kKvBf16 == kOutBf16) return raw;
  else return pack<kOutBf16>(unpack<kKvBf16>(raw));
}

extern "C" __global__ void __launch_bounds__(THREADS) cache_read(const __grid_constant__ Params p) {
  let_next_kernel_start();
  const unsigned thread = blockIdx.x * THREADS + threadIdx.x;
  const int first_row = thread / kTokenThreads * kRows;
  const unsigned part = thread % kHeadThreads, head = thread % kTokenThreads / (2 * kHeadThreads);
  const bool is_v = thread / kHeadThreads % 2, odd = part % 2;
  const unsigned value = part / 2 * 32 + odd * 8;  // where its first chunk lies in the head
  wait_for_previous_kernel();

  int tokens[kRows], pages[kRows];
  Sequence sequence(p, sequence_at(p, first_row));
  bool any = false;
#pragma unroll
  for (int i = 0; i < kRows; i++) {
    const int row = first_row + i;
    while (row >= sequence.next_row && sequence.number + 1 < p.sequences) sequence = Sequence(p, sequence.number + 1);
    tokens[i] = row < p.rows ? sequence.token(row) : -1;
    any |= tokens[i] >= 0;
    pages[i] = tokens[i] < 0 ? 0 : p.table[sequence.number * p.table_stride + (tokens[i] >> p.page_shift)];
  }
  if (!__any_sync(kAllLanes, any)) return;

  // Loads of all rows are in flight at once. Rows without a token load from page 0.
  const char* cache = (is_v ? p.v_cache : p.k_cache) + head * p.head_stride;
  const float* scale_of = is_v ? p.v_scale : p.k_scale;
  const bool by_channel = kChannelScales && !is_v;
  const bool has_scale = scale_of && !by_channel;
  if (has_scale) scale_of += head * (is_v ? p.v_scale_head : p.k_scale_head);
  uint4 raw[kRows * kKvBytes];
  float scales[kRows];
  bool inside[kRows];
#pragma unroll
  for (int i = 0; i < kRows; i++) {
    inside[i] = pages[i] >= 0 && pages[i] < p.pages;
    const long long page = inside[i] ? pages[i] : 0, slot = tokens[i] & (1 << p.page_shift) - 1;
    const char* from = cache + page * p.page_stride + slot * p.slot_stride;
    if constexpr (kKvBytes == 1) {
      raw[i] = load_16(from + part * 16);
      if constexpr (kTokenScales)
        scales[i] = !has_scale ? 1.f
                    : load_float(scale_of + page * (is_v ? p.v_scale_page : p.k_scale_page) +
                                 slot * (is_v ? p.v_scale_slot : p.k_scale_slot));
    } else {
      raw[2 * i] = load_16(from + value * 2);
      raw[2 * i + 1] = load_16(from + (value + kApart) * 2);
    }
  }
  float channels[kChannelScales ? 16 : 1];
  if constexpr (kChannelScales) {
#pragma unroll
    for (int i = 0; i < 16; i++)
      channels[i] = by_channel ? p.k_scale[head * kHeadDim + value + (i < 8 ? i : i - 8 + kApart)] : 1.f;
  }
  const float scale = has_scale && !kTokenScales && kKvBytes == 1 ? load_float(scale_of) : 1.f;

  const long long out_stride = is_v ? p.v_out_stride : p.k_out_stride;
  char* to = (is_v ? p.v_out : p.k_out) + first_row * out_stride + (head * kHeadDim + value) * 2;
#pragma unroll
  for (int i = 0; i < kRows; i++, to += out_stride) {
    uint4 low, high;
    if constexpr (kKvBytes == 1) {
      const uint4 both = exchanged(raw[i], odd);
      const float factor = kTokenScales ? scales[i] : scale;
      low = out_of(from_bytes({both.x, both.y}), factor, channels);
      high = out_of(from_bytes({both.z, both.w}), factor, channels + (kChannelScales ? 8 : 0));
    } else {
      low = out_of(raw[2 * i]);
      high = out_of(raw[2 * i + 1]);
    }
    if (!inside[i]) low = high = {kNan, kNan, kNan, kNan};
    if (tokens[i] < 0) continue;
    *reinterpret_cast<uint4*>(to) = low;
    *reinterpret_cast<uint4*>(to + kApart * 2) = high;
  }
}
