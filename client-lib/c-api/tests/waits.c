/* A call while the servers say nothing. waits DIRECTORY
 * They are halted when it says "now", and go on after it has told how the call ended, or before. */
#include "check.h"

int main(int argc, char **argv)
{
    struct stat st;
    CHECK(argc == 2);
    ime_native_init();
    CHECK(ime_native_stat(name_in(argv[1], "."), &st) == 0);
    puts("now");
    fflush(stdout);
    CHECK(getchar() != EOF);
    if (ime_native_stat(name_in(argv[1], "."), &st) == 0)
        puts("good");
    else
        printf("%s; %s\n", strerror(errno), bb_error_text());
    fflush(stdout);
    CHECK(getchar() != EOF);
    CHECK(ime_native_finalize() == 0);
    return 0;
}
