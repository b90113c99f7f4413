/* Content that says where it belongs, so that a read of the wrong or of old bytes is found. */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t word(uint64_t file, uint64_t offset)
{
    return mix(mix(task.seed ^ mix(file)) ^ offset);
}

void fill(char *data, size_t len, uint64_t salt)
{
    for (size_t at = 0; at + 8 <= len; at += 8) {
        uint64_t value = mix(salt * 0x10001 + at);
        memcpy(data + at, &value, 8);
    }
}

void stamp(char *data, size_t len, uint64_t file, uint64_t offset)
{
    for (size_t at = 0; at + 8 <= len; at += PAGE) {
        uint64_t value = word(file, offset + at);
        memcpy(data + at, &value, 8);
    }
}

void check(const char *data, size_t len, uint64_t file, uint64_t offset)
{
    for (size_t at = 0; at + 8 <= len; at += PAGE) {
        uint64_t value;
        memcpy(&value, data + at, 8);
        if (value != word(file, offset + at)) {
            fprintf(stderr, "WRONG BYTES: file %llu, offset %llu\n", (unsigned long long)file,
                    (unsigned long long)(offset + at));
            exit(3);
        }
    }
}
