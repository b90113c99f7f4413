/* Crashes. */
#include "check.h"

#include <sys/resource.h>

int main(void)
{
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    ime_native_init();
    *(volatile int *)16 = 1;
    return 0;
}
