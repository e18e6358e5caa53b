// What these libraries take from glibc and libstdc++ that systems of manylinux_2_28 lack, which have glibc 2.28 and the
// libstdc++ of GCC 8. All of it stays inside the library (exports.map).
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <sstream>

extern "C" {
// glibc 2.32 tells here whether a second thread was ever started, so that shared_ptr can do without atomics.
char __libc_single_threaded = 0;

// The copy constructor and the destructor that exception_ptr had before GCC 11 made them inline; by version, since
// those that are inline may be in this library, under the same names.
void eqk_copy_exception(void* to, const void* from);
void eqk_drop_exception(void* of);
__asm__(".symver eqk_copy_exception, _ZNSt15__exception_ptr13exception_ptrC1ERKS0_@CXXABI_1.3.3");
__asm__(".symver eqk_drop_exception, _ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");
}

namespace std {
// GCC 11's: they count what refers to the exception, as a copy does that is never dropped, and as dropping one does.
void __exception_ptr::exception_ptr::_M_addref() noexcept {
  void* copy;
  eqk_copy_exception(&copy, this);
}
void __exception_ptr::exception_ptr::_M_release() noexcept {
  void* held = _M_exception_object;
  _M_exception_object = nullptr;
  eqk_drop_exception(&held);
}

// GCC 11's too.
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

// GCC 12's, of _GLIBCXX_ASSERTIONS.
void __glibcxx_assert_fail(const char* file, int line, const char* function, const char* condition) noexcept {
  std::fprintf(stderr, "%s:%d: %s: expected %s\n", file, line, function, condition);
  std::abort();
}

// Constructors of GCC 9 and str() of GCC 11, which libstdc++ instantiates for all.
template class basic_stringbuf<char>;
template class basic_ostringstream<char>;
template class basic_stringstream<char>;
}  // namespace std
