/* What the functions of NVML have in common: a device's line in the script, and its values with NVML's errors. */
#ifndef STUB_DEVICE_H
#define STUB_DEVICE_H

#include "script.h"

typedef const char *device_t;

/* That of the driver NVML was initialised for; -1 while it is not. */
extern int epoch;

int number_of(const line_t *line, const char *key, int otherwise);
double value_or(const line_t *line, const char *key, double otherwise);
/* What every function answers first: is NVML initialised, for the driver that is loaded now? */
int state(void);
/* The line of a device, under the lock of the script. */
int device_line(device_t device, const line_t **line);
/* These lock the script themselves. */
int get_number(device_t device, const char *key, double *value);
int get_uint(device_t device, const char *key, unsigned int *value);
int get_text(device_t device, const char *key, char *buffer, unsigned int size);
int nvmlDeviceGetGpuInstanceById(device_t device, unsigned int gi, device_t *instance);

#endif
