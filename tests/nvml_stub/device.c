#include "device.h"

#include <stdio.h>
#include <string.h>

int epoch = -1;

int number_of(const line_t *line, const char *key, int otherwise) {
    int error;
    double value = line_number(line, key, &error);
    return error == OK ? (int)value : otherwise;
}

int state(void) {
    const line_t *system = script_find("system", NULL, NULL, 0);
    if (epoch < 0 || system == NULL || epoch != number_of(system, "epoch", 0)) return UNINITIALIZED;
    return number_of(system, "error", OK);
}

int device_line(device_t device, const line_t **line) {
    int error = state();
    if (error != OK) return error;
    int sliced = strncmp(device, "MIG-", 4) == 0;
    *line = script_find(sliced ? "mig" : "gpu", "uuid", device, 0);
    if (*line == NULL) return sliced ? NOT_FOUND : GPU_IS_LOST;
    return number_of(*line, "error", OK);
}

int get_number(device_t device, const char *key, double *value) {
    const line_t *line;
    script_lock();
    int error = device_line(device, &line);
    if (error == OK) *value = line_number(line, key, &error);
    script_unlock();
    return error;
}

int get_uint(device_t device, const char *key, unsigned int *value) {
    double found = 0;
    int error = get_number(device, key, &found);
    if (error == OK) *value = (unsigned int)found;
    return error;
}

int get_text(device_t device, const char *key, char *buffer, unsigned int size) {
    const line_t *line;
    script_lock();
    int error = device_line(device, &line);
    const char *text = error == OK ? line_text(line, key, &error) : NULL;
    if (error == OK) snprintf(buffer, size, "%s", text);
    script_unlock();
    return error;
}

double value_or(const line_t *line, const char *key, double otherwise) {
    int error;
    double value = line_number(line, key, &error);
    return error == OK ? value : otherwise;
}
