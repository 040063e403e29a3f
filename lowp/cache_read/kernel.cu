// Tokens of a paged cache into contiguous rows of BF16 or FP16, K and V.
//
// A thread moves 16 values of one head, of kRows output rows. Two threads, neighbours in a warp, share 32 values; each
// stores the first or second half of either 16, so that every store of a warp fills whole sectors of 32 bytes.
#include "convert.cuh"

constexpr unsigned kHeadThreads = kHeadDim / 16, kTokenThreads = 2 * kKvHeads * kHeadThreads;
constexpr int kApart = 16;  // values from a thread's first chunk of 8 to its second, once exchanged
constexpr unsigned kAllLanes = 0xffffffffu, kNan = 0x7fff7fffu;  // of two values of 16 bits, and of one fp32

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
  int pages, search_step;                                 // search_step: the highest power of two below sequences, or 0
};
static_assert(sizeof(Params) == PARAMS_BYTES, "params.py's Params");

// The token of sequence `number` that belongs to a row, or -1: the row stays as it is.
DEVICE int token_of(const Params& p, int number, int row) {
  const int first_row = p.cu_out[number], next_row = p.cu_out[number + 1];
  const unsigned start = p.starts ? p.starts[number] : 0, end = min(max(p.ends[number], 0), p.table_tokens);
  const unsigned token = start + row - first_row;
  return row >= first_row && row < min(next_row, p.rows) && token >= start && token < end ? int(token) : -1;
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

  // For each row the last sequence whose rows begin at it or before, the first one if there is none: searched side by
  // side, by halving steps that are the same for all threads.
  int sequences[kRows] = {}, tokens[kRows], pages[kRows];
  for (int step = p.search_step; step; step /= 2) {
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const int next = sequences[i] + step;
      if (next < p.sequences && p.cu_out[next] <= first_row + i) sequences[i] = next;
    }
  }
  bool any = false;
#pragma unroll
  for (int i = 0; i < kRows; i++) {
    tokens[i] = token_of(p, sequences[i], first_row + i);
    any |= tokens[i] >= 0;
  }
  if (!__any_sync(kAllLanes, any)) return;

#pragma unroll
  for (int i = 0; i < kRows; i++)
    pages[i] = tokens[i] < 0 ? 0 : p.table[sequences[i] * p.table_stride + (tokens[i] >> p.page_shift)];

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
    for (int i = 0; i < 16; i += 4) {
      constexpr unsigned kOne = 0x3f800000u;
      const float* from = p.k_scale + head * kHeadDim + value + i / 8 * kApart + i % 8;
      const uint4 four = by_channel ? load_16(from) : uint4{kOne, kOne, kOne, kOne};
      channels[i] = __uint_as_float(four.x), channels[i + 1] = __uint_as_float(four.y);
      channels[i + 2] = __uint_as_float(four.z), channels[i + 3] = __uint_as_float(four.w);
    }
  }
  const float scale = has_scale && !kTokenScales && kKvBytes == 1 ? load_float(scale_of) : 1.f;

  const long long out_stride = is_v ? p.v_out_stride : p.k_out_stride;
  char* to = (is_v ? p.v_out : p.k_out) + first_row * out_stride + (head * kHeadDim + value) * 2;
#pragma unroll
  for (int i = 0; i < kRows; i++, to += out_stride) {
    uint4 low, high;
    if constexpr (kKvBytes == 1) {
      const uint4 both = exchanged(raw[i], odd);
      const float factor = !inside[i] ? __uint_as_float(kNan) : kTokenScales ? scales[i] : scale;
      low = out_of(from_bytes({both.x, both.y}), factor, channels);
      high = out_of(from_bytes({both.z, both.w}), factor, channels + (kChannelScales ? 8 : 0));
    } else {
      low = inside[i] ? out_of(raw[2 * i]) : uint4{kNan, kNan, kNan, kNan};
      high = inside[i] ? out_of(raw[2 * i + 1]) : uint4{kNan, kNan, kNan, kNan};
    }
    if (tokens[i] < 0) continue;
    *reinterpret_cast<uint4*>(to) = low;
    *reinterpret_cast<uint4*>(to + kApart * 2) = high;
  }
}
