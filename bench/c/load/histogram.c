/* Latencies of all threads, small enough to be sent in a line and to be added up over ranks. */
#include "load.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>

#define BUCKETS (32 * 40)

/* Bucket b: up to 2^(b/32) nanoseconds. */
static _Atomic uint32_t buckets[BUCKETS];

void latency(double seconds)
{
    double ns = seconds * 1e9;
    int bucket = ns < 1 ? 0 : (int)ceil(log2(ns) * 32);
    if (bucket >= BUCKETS)
        bucket = BUCKETS - 1;
    atomic_fetch_add_explicit(&buckets[bucket], 1, memory_order_relaxed);
}

void print_histogram(void)
{
    const char *comma = "";
    printf("[");
    for (int i = 0; i < BUCKETS; i++)
        if (buckets[i]) {
            printf("%s[%d,%u]", comma, i, buckets[i]);
            comma = ",";
        }
    printf("]");
}
