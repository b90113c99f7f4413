#ifndef CALLS_H
#define CALLS_H

#include "load.h"

/* The table for a path: "ime://..." is Burstbay's, all else the system's. */
struct calls calls_for(const char *path, bool direct);

#endif
