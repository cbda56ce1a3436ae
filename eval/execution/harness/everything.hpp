// All of the standard library, for answers that name more of it than judged.hpp includes.
#if __has_include(<bits/stdc++.h>)
#include <bits/stdc++.h>
#endif
#include "judged.hpp"
