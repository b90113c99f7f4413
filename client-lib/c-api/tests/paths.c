/* Section 4: names. paths BFS-MOUNT DIRECTORY BUFFER-MOUNT LINK
 * The directory exists below the top of the backing file system; nothing need be mounted at the mount
 * of the buffer; the link is a symbolic link to it. */
#include "check.h"

static void made(const char *path)
{
    struct stat st;
    int fd = ime_native_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && ime_native_write(fd, path, strlen(path)) == (ssize_t)strlen(path));
    CHECK(ime_native_close(fd) == 0);
    CHECK(ime_native_stat(path, &st) == 0 && (size_t)st.st_size == strlen(path));
}

int main(int argc, char **argv)
{
    char path[6][PATH_MAX], converted[PATH_MAX];
    CHECK(argc == 5);
    const char *bfs = argv[1], *dir = argv[2], *mount = argv[3], *link = argv[4];
    ime_native_init();
    snprintf(path[0], PATH_MAX, "ime://%s/%s/f", bfs, dir);
    snprintf(path[1], PATH_MAX, "ime://%s/f", dir);
    snprintf(path[2], PATH_MAX, "ime:%s/%s/f", bfs, dir);
    snprintf(path[3], PATH_MAX, "ime:%s/f", dir);
    snprintf(path[4], PATH_MAX, "%s/%s/f", mount, dir);
    snprintf(path[5], PATH_MAX, "%s/%s/f", link, dir);
    for (int i = 0; i < 6; i++) {
        made(path[i]);
        /* All the others name the same file. */
        struct stat st;
        for (int k = 0; k < 6; k++)
            CHECK(ime_native_stat(path[k], &st) == 0 && (size_t)st.st_size == strlen(path[i]));
        path[i][0] = path[i][0] == 'i' ? 'I' : path[i][0];
        made(path[i]);
    }
    CHECK(ime_client_native2_is_fuse_path_and_convert(path[4], converted));
    snprintf(path[0], PATH_MAX, "/%s/f", dir);
    CHECK(strcmp(converted, path[0]) == 0);
    CHECK(ime_client_native2_is_fuse_path_and_convert(path[5], converted));
    CHECK(strcmp(converted, path[0]) == 0);
    CHECK(ime_client_native2_is_fuse_path_and_convert(mount, converted));
    CHECK(strcmp(converted, "/") == 0);
    CHECK(!ime_client_native2_is_fuse_path_and_convert(bfs, converted));
    CHECK(!ime_client_native2_is_fuse_path_and_convert("relative", converted));
    /* The prefix goes with paths of the backing file system. */
    snprintf(path[0], PATH_MAX, "ime://%s/%s/f", mount, dir);
    FAILS(ime_native_open(path[0], O_RDONLY, 0), EINVAL);
    FAILS(ime_native_open("ime:///elsewhere/f", O_RDONLY, 0), ENOENT);
    CHECK(ime_native_finalize() == 0);
    return 0;
}
