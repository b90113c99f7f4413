/* Compiles as C99 and as C++17, without a warning; the layout is the published one. */
#include <ime_native.h>
#include <im_client_native2.h>
#include <bb_client.h>

#include <stddef.h>

#ifdef __cplusplus
#define ASSERT(condition, name) static_assert(condition, #name)
#else
#define ASSERT(condition, name) typedef char name[(condition) ? 1 : -1]
#endif

ASSERT(sizeof(struct ime_aiocb) == 48, size);
ASSERT(offsetof(struct ime_aiocb, fd) == 0, fd_at);
ASSERT(offsetof(struct ime_aiocb, iovcnt) == 4, iovcnt_at);
ASSERT(offsetof(struct ime_aiocb, flags) == 8, flags_at);
ASSERT(offsetof(struct ime_aiocb, iov) == 16, iov_at);
ASSERT(offsetof(struct ime_aiocb, file_offset) == 24, offset_at);
ASSERT(offsetof(struct ime_aiocb, complete_cb) == 32, callback_at);
ASSERT(offsetof(struct ime_aiocb, user_context) == 40, context_at);
ASSERT(sizeof(struct bb_ring_completion) == 16, completion_size);
ASSERT(IME_NATIVE_API_VERSION >= 132, api_version);
ASSERT(IME_IOV_MAX == 1024, vectors);
ASSERT(DEFAULT_IME_FILE_PREFIX_LEN == 6, prefix_len);
ASSERT(IME_FILE_PREFIX_LEN_NO_FWD_SLASH == 4, bare_prefix_len);

int main(void)
{
    /* One argument, two, and the function itself. */
    int (*function)(int, bool) = ime_native_bfs_sync;
    bool nothing = function == NULL || ime_native_bfs_sync(-1) == 0;
    nothing = nothing || ime_client_native2_bfs_sync(-1, true) == 0;
    /* What the header must bring along. */
    struct statvfs space;
    struct stat status;
    struct iovec vector = {NULL, 0};
    (void)space, (void)status, (void)vector, (void)strerror(0), (void)getpid();
    printf("%s%s\n", DEFAULT_IME_FILE_PREFIX, DEFAULT_IME_PREFIX_NO_FWD_SLASH);
    return nothing;
}
