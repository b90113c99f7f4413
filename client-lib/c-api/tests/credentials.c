/* As root: what the user of the calling thread may do counts. credentials DIRECTORY BFS-DIRECTORY */
#include <grp.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "check.h"

static const char *dir;

/* Only this thread becomes somebody else: raw calls. */
static void *as_somebody(void *argument)
{
    (void)argument;
    gid_t groups[1] = {5005};
    char back[4];
    struct stat st;
    CHECK(syscall(SYS_setgroups, 1, groups) == 0);
    CHECK(syscall(SYS_setresgid, 4004, 4004, 4004) == 0);
    CHECK(syscall(SYS_setresuid, 4004, 4004, 4004) == 0);
    FAILS(ime_native_open(name_in(dir, "private"), O_RDONLY, 0), EACCES);
    FAILS(ime_native_access(name_in(dir, "private"), R_OK), EACCES);
    FAILS(ime_native_open(name_in(dir, "new"), O_RDWR | O_CREAT, 0600), EACCES);
    /* By its group. */
    int fd = ime_native_open(name_in(dir, "grouped"), O_RDONLY, 0);
    CHECK(fd >= 0 && ime_native_read(fd, back, 4) == 4 && ime_native_close(fd) == 0);
    fd = ime_native_open(name_in(dir, "open/mine"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_close(fd) == 0);
    CHECK(ime_native_stat(name_in(dir, "open/mine"), &st) == 0);
    CHECK(st.st_uid == 4004 && st.st_gid == 4004);
    return NULL;
}

int main(int argc, char **argv)
{
    char local[PATH_MAX];
    pthread_t thread;
    CHECK(argc == 3);
    dir = argv[1];
    ime_native_init();
    int fd = ime_native_open(name_in(dir, "private"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_write(fd, "mine", 4) == 4 && ime_native_close(fd) == 0);
    fd = ime_native_open(name_in(dir, "grouped"), O_RDWR | O_CREAT, 0640);
    CHECK(fd >= 0 && ime_native_write(fd, "ours", 4) == 4 && ime_native_close(fd) == 0);
    snprintf(local, sizeof local, "%s/grouped", argv[2]);
    CHECK(chown(local, 0, 5005) == 0);
    CHECK(ime_native_mkdir(name_in(dir, "open"), 0777) == 0);
    snprintf(local, sizeof local, "%s/open", argv[2]);
    CHECK(chmod(local, 0777) == 0 && chmod(argv[2], 0755) == 0);
    CHECK(pthread_create(&thread, NULL, as_somebody, NULL) == 0 && pthread_join(thread, NULL) == 0);
    fd = ime_native_open(name_in(dir, "private"), O_RDONLY, 0);
    CHECK(fd >= 0 && ime_native_close(fd) == 0 && ime_native_finalize() == 0);
    return 0;
}
