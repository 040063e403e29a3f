// The configuration of one build. The host defines every name in capitals (build.py); none has a default.
#pragma once
#include "ptx.cuh"

// The variant.
constexpr int kHeadDim = HEAD_DIM;               // 64 or 128
constexpr bool kQueryBf16 = QUERY_BF16;          // the query and the output: bf16 or fp16
constexpr bool kE4m3 = KV_E4M3, kInt8 = KV_INT8; // the cache: e4m3, int8, or 16 bits:
constexpr bool kKvBf16 = KV_BF16;                //   bf16 (the MMAs run in bf16), else fp16 (in fp16, as for 8 bits but int8's keys)
constexpr int kQueryTokens = QUERY_TOKENS;       // 1 to 4, the last positions of the sequence
constexpr int kGroupTiles = GROUP_TILES;         // columns (query heads of a KV head x query tokens), in tiles of 8
constexpr bool kTokenScales = TOKEN_SCALES;      // one scale per token and head, else per head; of the keys only
constexpr bool kChannelScales = CHANNEL_SCALES;  //   without this: the keys' scales per channel and head
constexpr bool kWindow = WINDOW;                 // window_left >= 0
constexpr bool kInterleaved = INTERLEAVED;       // 8 bits, 64 dims: a token's values follow its keys, 128 bytes in all

// The launch.
constexpr int kWarps = WARPS, kStages = STAGES;  // warps a CTA; stages of a warp's ring
constexpr int kTiles = TILES;                    // tiles of 16 tokens a step
constexpr int kCluster = CLUSTER;                // CTAs of a cluster, which splits a row; 0: the device plans the splits

// Sizes that follow. A half is 64 dims. A block of the ring is 16 tokens x 1 half at 16 bits, x all dims at 8 bits.
constexpr int kHalves = kHeadDim / 64, kColumns = 8 * kGroupTiles, kThreads = 32 * kWarps;
constexpr int kRanks = kCluster > 1 ? kCluster : 1, kWorkers = kRanks * kWarps;  // CTAs, warps that a row's tiles are dealt to
constexpr bool kOneByte = kE4m3 || kInt8;
static_assert(!kInterleaved || (kOneByte && kHalves == 1), "a line holds both keys and values");
constexpr int kRowBytes = kOneByte && !kInterleaved ? kHeadDim : 128, kBlockBytes = 16 * kRowBytes;
constexpr int kTileBytes = kOneByte ? kBlockBytes : kHalves * kBlockBytes;  // of keys or values; interleaved, of both
constexpr int kValuesOffset = kInterleaved ? 0 : kTiles * kTileBytes;           // in a stage: keys, values, scales of both
constexpr int kScalesOffset = kValuesOffset + kTiles * kTileBytes;
constexpr int kStageBytes = kScalesOffset + (kTokenScales ? kTiles * 128 : 0);
constexpr int kRingBytes = kStages * kStageBytes;
constexpr int kQueryTerms = kKvBf16 && !kQueryBf16 ? 2 : 1;  // the 11 bits of an fp16 are the sum of two bf16
constexpr int kQueryTiles = kGroupTiles * kHalves * kQueryTerms;
constexpr bool kQueryShared = kQueryTiles > 5;             // the query does not fit the registers beside the state
constexpr int kQueryBytes = kQueryShared ? kQueryTiles * 1024 : 0;

struct Params {
  const char* q;             // [batch, query tokens, heads, head_dim], strides below in bytes
  const char* k;             // caches: page, head and slot strides below
  const char* v;
  const int* table;          // [batch, table_width], rows table_stride apart
  const int* lengths;        // [batch]
  const float* sinks;        // [kv_heads * group]
  const float* k_scale;      // null (1), strides below, or [kv_heads, head_dim] per channel
  const float* v_scale;
  char* out;                 // [batch, query tokens, heads, head_dim]
  float* lse;                // [batch, query tokens, heads] or null
  float* partials;           // planned: [kv_heads, splits, 2, kPartialFloats]
  unsigned* arrived;         // planned: [batch, kv_heads], zero between launches
  float sm_scale;
  int batch, group, q_stride, table_stride, table_width;
  int page_shift;                                  // log2 of the tiles in a page
  unsigned page_stride, head_stride, slot_stride;  // of the caches, in units of 16 bytes
  int k_scale_head, v_scale_head;                  // scales per head: floats from head to head, 0 or 1
  int scale_page, scale_head, scale_slot;          // scales per token and head, in floats
  int window_left;                                 // tokens before the newest that are read
  int splits;                                      // planned: CTAs that the long rows are dealt to, per KV head
  int q_token_stride;                              // as q_stride, from query token to query token
};
