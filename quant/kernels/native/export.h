// What the library shows to Python, also where nothing else is shown: on Windows, and in a wheel's library.
#ifndef PACKLIGHT_EXPORT_H_
#define PACKLIGHT_EXPORT_H_

#if defined(_WIN32)
#define PACKLIGHT_EXPORT extern "C" __declspec(dllexport)
#else
#define PACKLIGHT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#endif  // PACKLIGHT_EXPORT_H_
