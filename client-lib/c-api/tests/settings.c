/* Prints what bb_settings says. settings [NAME=VALUE]... [-- PATH]: values as from a command line,
 * and a path to open for reading. */
#include "check.h"

int main(int argc, char **argv)
{
    static char text[65536];
    const char *path = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--") == 0) {
            path = argv[++i];
            break;
        }
        char *value = strchr(argv[i], '=');
        CHECK(value);
        *value++ = 0;
        if (bb_set(argv[i], value)) {
            printf("refused: %s\n", bb_error_text());
            return 2;
        }
    }
    ime_native_init();
    CHECK(bb_settings(text, sizeof text) < (ssize_t)sizeof text);
    fputs(text, stdout);
    if (path) {
        int fd = ime_native_open(path, O_RDONLY, 0);
        printf("open: %s\n", fd < 0 ? strerror(errno) : "good");
        if (fd < 0)
            printf("text: %s\n", bb_error_text());
        else
            CHECK(ime_native_close(fd) == 0);
    }
    fflush(stdout);
    CHECK(ime_native_finalize() == 0);
    return 0;
}
