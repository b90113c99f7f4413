/* Children, with and without init in the parent. forks DIRECTORY COUNT */
#include <sys/wait.h>

#include "check.h"

static void in_child(const char *dir, int number, int inherited)
{
    char name[30], back[100];
    snprintf(name, sizeof name, "child%d", number);
    if (number % 3 == 0)
        ime_native_init();
    int fd = ime_native_open(name_in(dir, name), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_write(fd, name, strlen(name)) == (ssize_t)strlen(name));
    CHECK(ime_native_pread(fd, back, 100, 0) == (ssize_t)strlen(name));
    CHECK(ime_native_close(fd) == 0);
    if (inherited >= 0) {
        /* Opened by the parent, and durable before the fork. */
        CHECK(ime_native_pread(inherited, back, 6, 0) == 6 && memcmp(back, "parent", 6) == 0);
        CHECK(ime_native_pwrite(inherited, name, 8, 100 + number * 8) == 8);
        CHECK(ime_native_fsync(inherited) == 0);
        if (number % 2)
            CHECK(ime_native_close(inherited) == 0);
    }
    if (number % 4 != 1)
        CHECK(ime_native_finalize() == 0);
    exit(0);
}

static void children(const char *dir, int first, int count, int inherited)
{
    for (int i = first; i < first + count; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            in_child(dir, i, inherited);
    }
    for (int i = 0; i < count; i++) {
        int status;
        CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    const char *dir = argv[1];
    int count = atoi(argv[2]);
    char back[8];
    /* Before this process has used anything. */
    children(dir, 0, count, -1);
    ime_native_init();
    children(dir, count, count, -1);
    int fd = ime_native_open(name_in(dir, "parent"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_pwrite(fd, "parent", 6, 0) == 6 && ime_native_fsync(fd) == 0);
    children(dir, 2 * count, count, fd);
    CHECK(ime_native_fsync(fd) == 0);
    for (int i = 2 * count; i < 3 * count; i++)
        CHECK(ime_native_pread(fd, back, 5, 100 + i * 8) == 5 && memcmp(back, "child", 5) == 0);
    CHECK(ime_native_close(fd) == 0 && ime_native_finalize() == 0);
    /* And after the end. */
    children(dir, 3 * count, count, -1);
    return 0;
}
